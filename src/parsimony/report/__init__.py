"""From records to tables, figures, the ledger and the page."""
