"""What the bytes of a store mean (docs/format.md): manifest, fields, views, ids, ledger, int8."""
