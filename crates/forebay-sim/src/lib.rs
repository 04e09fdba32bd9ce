//! A simulated host with virtual time, seeded faults, and the contract every host passes.
