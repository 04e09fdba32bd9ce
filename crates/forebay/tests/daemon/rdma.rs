//! Moves over RDMA. They need an address of a network device that has it, which comes from the scenario `rdma` of
//! `cargo xtask vm test`: it makes one of soft-RoCE.

use crate::memory_fleet;
use crate::moves::Fleet;
use crate::place::eventually;

/// Bytes beside what the app counts.
const LOAD: usize = 6 << 20;
/// Memory in MiB of what goes along with it. It is all looked at again and again, in an emulated machine.
const MEMORY: u32 = 6;

/// An address of a network device that has it.
fn address(test: &str) -> Option<String> {
    let address = std::env::var("FOREBAY_TEST_RDMA").ok();
    if address.is_none() {
        println!("SKIPPED: {test}: no address with RDMA; it runs in `cargo xtask vm test rdma`");
    }
    address
}

#[test]
fn what_moves_goes_over_rdma_and_comes_whole() {
    const TEST: &str = "what moves goes over RDMA";
    let Some(address) = address(TEST) else {
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

/// There and back, as the same process, which looks at the sum of every page again and again and is watched meanwhile.
#[test]
fn a_process_and_its_memory_go_over_rdma_and_come_whole() {
    const TEST: &str = "a process and its memory go over RDMA";
    let Some(address) = address(TEST) else {
        return;
    };
    let Some(fleet) = memory_fleet::Fleet::start_at(TEST, &address, MEMORY) else {
        return;
    };
    let first = fleet.await_owner();
    let pid = fleet.place(first).await_pid("pages");
    for from in [first, memory_fleet::other(first)] {
        let to = memory_fleet::other(from);
        let moved = fleet.place(from).json(&["move", "pages", "--to", to]);
        println!("{moved}");
        assert_eq!(moved["stage"], "moved", "{moved}");
        assert_eq!(moved["mode"], "checkpoint", "{moved}");
        assert_eq!(moved["transport"], "rdma", "{moved}");
        assert!(
            moved["sent_bytes"].as_u64().unwrap() >= u64::from(MEMORY) << 20,
            "{moved}"
        );
        assert_eq!(fleet.await_owner(), to);
        assert_eq!(fleet.place(to).await_pid("pages"), pid, "it is the same");
        let told = fleet.place(from).json(&["events", "--app", "pages"]);
        assert!(told.to_string().contains(" bytes over rdma in "), "{told}");
        fleet.await_clean();
    }
    println!("it was silent for {} ms at most", fleet.longest_silence());
}
