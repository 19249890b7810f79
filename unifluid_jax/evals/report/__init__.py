"""What evaluation found, as pages."""
