"""What every layer uses: configuration, devices, states on disk, flags."""
