"""Exact metrics of texts, images and detections."""
