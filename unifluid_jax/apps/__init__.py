"""The app: trained runs in a browser, one file per tab; the extra `app`."""
