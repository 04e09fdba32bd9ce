//! The only kernel effects: control groups, /proc, pressure, supervision and the ledger.
