"""Which device has which directory: made once, on record, resolved free."""
