"""Reports what a judge lets pass: its reliability, the kinds of tokens, and cases in their context."""
