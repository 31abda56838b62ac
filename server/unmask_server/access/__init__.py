"""Who may do what: TLS, tokens, OpenID Connect, and which files and hosts requests may name."""
