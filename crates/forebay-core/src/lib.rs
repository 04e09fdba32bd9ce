//! Forebay's pure domain: topology, snapshot, demand, plan and the control period.
