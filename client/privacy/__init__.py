"""Privacy of a site: its policy, budget and ledger, and the gate for its replies."""
