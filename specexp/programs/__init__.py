"""Programs in texts, the tests of known data sets, and outcomes that are compared."""
