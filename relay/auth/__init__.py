"""Who somebody is and what that allows: tokens, the keys that prove them, and a proxy's word."""
