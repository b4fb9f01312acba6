"""Parts for Fieldmark; each module registers one."""
