//! Moves over RDMA. They need an address of a network device that has it, which comes from the scenario `rdma` of
//! `cargo xtask vm test`: it makes one of soft-RoCE.

use crate::moves::Fleet;
use crate::place::eventually;

/// Bytes beside what the app counts.
const LOAD: usize = 6 << 20;

#[test]
fn what_moves_goes_over_rdma_and_comes_whole() {
    const TEST: &str = "what moves goes over RDMA";
    let Ok(address) = std::env::var("FOREBAY_TEST_RDMA") else {
        println!("SKIPPED: {TEST}: no address with RDMA; it runs in `cargo xtask vm test rdma`");
        return;
    };
    let Some(fleet) = Fleet::start_at(TEST, &["a", "b"], (address.as_str(), "60s"), |_| {
        String::new()
    }) else {
        return;
    };
    eventually("somebody owns it", || fleet.processes().len() == 1);
    let here = fleet.owner();
    let there = if here == "a" { "b" } else { "a" };
    fleet.await_owner(&here);
    let load = fleet.load(&here, LOAD);

    let moved = fleet.place(&here).json(&["move", "counts", "--to", there]);
    println!("{moved}");
    assert_eq!(moved["stage"], "moved", "{moved}");
    assert_eq!(moved["transport"], "rdma", "{moved}");
    fleet.await_owner(there);
    assert!(fleet.loaded(there) == load, "it came otherwise");
    let told = fleet.place(&here).json(&["events", "--app", "counts"]);
    assert!(told.to_string().contains(" bytes over rdma in "), "{told}");
    fleet.witnessed();
}
