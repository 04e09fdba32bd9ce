//! The programs that count a group's packets and hold its sending to a rate.
//!
//! Problem: count what the sockets of a group send and receive, and bound what they send, at a
//! cost of nanoseconds a packet and with nothing left in the kernel when the daemon is gone.
//!
//! Approach: for each packet one program run on the group's behalf adds to a row of counters.
//! The bound is a generic cell rate algorithm (ITU-T I.371): one number, the time at which all
//! that was sent would have been sent at the rate. A packet moves it on by its own time; when it
//! is too far ahead of now the packet is dropped and TCP told of congestion, and when it is half
//! as far TCP is told to slow down, as the kernel's own host bandwidth manager does
//! (samples/bpf/hbm.c, whose idea of return values this is). Many CPUs move the number at once,
//! so it is moved by atomic additions.
//!
//! TCP offers a segment that was dropped here again after 200 ms and more, so what may be ahead
//! has to last for longer: with 20 ms of it one connection got a third of its rate, with 500 ms all
//! of it. That is what it costs to bound without a queue: bursts. Pacing by socket
//! (`SO_MAX_PACING_RATE`) would be smooth, and would stay in the sockets of a killed daemon's apps.
//!
//! Properties, tested on the kernel: counts equal what was sent; over seconds the rate holds, plus
//! what may be ahead; without a rate nothing is dropped; loopback is neither counted nor bounded.

use super::bpf::Insn;

/// What programs and daemon share, each a row of 64-bit numbers by its descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    /// The counters, which only programs write; [`field`] says where each stands.
    pub(super) counters: i32,
    /// Nanoseconds that 1024 bytes take at the rate, 0 without one; only the daemon writes it.
    pub(super) rate: i32,
}

/// Where each number stands in the row of counters.
pub(super) mod field {
    pub(crate) const RECEIVED_BYTES: usize = 0;
    pub(crate) const RECEIVED_PACKETS: usize = 1;
    pub(crate) const SENT_BYTES: usize = 2;
    pub(crate) const SENT_PACKETS: usize = 3;
    pub(crate) const DROPPED_PACKETS: usize = 4;
    pub(crate) const RETRANSMITTED: usize = 5;
    /// When all that was sent would have been sent at the rate.
    pub(crate) const SENT_BY_NS: usize = 6;
    pub(crate) const COUNT: usize = 7;
}

/// How far sending may be ahead of its rate before packets are dropped: longer than TCP's
/// shortest wait.
const AHEAD_NS: i32 = 500_000_000;
/// How much of its rate a silent group may save up.
const SAVED_NS: i32 = 20_000_000;

// Fields of `struct __sk_buff` and `struct bpf_sock_ops` in linux/bpf.h.
const SKB_LEN: i16 = 0;
const SKB_IFINDEX: i16 = 40;
const SKB_GSO_SEGS: i16 = 164;
const OPS_OP: i16 = 0;
const OPS_ARGS_1: i16 = 8;
const OPS_FLAGS: i16 = 84;
/// Loopback is the first interface of every network namespace.
const LOOPBACK: i32 = 1;

const HELPER_KTIME_NS: i32 = 5;
const HELPER_SOCK_OPS_FLAGS: i32 = 59;
const OP_ACTIVE_ESTABLISHED: i32 = 4;
const OP_PASSIVE_ESTABLISHED: i32 = 5;
const OP_RETRANSMIT: i32 = 9;
const FLAG_RETRANSMIT: i32 = 2;

const PASS: i32 = 1;
const DROP_AND_SLOW: i32 = 2;
const PASS_AND_SLOW: i32 = 3;

#[derive(Clone, Copy)]
struct R(u8);
const R0: R = R(0);
const R1: R = R(1);
const R2: R = R(2);
const R3: R = R(3);
const R4: R = R(4);
const R5: R = R(5);
const R6: R = R(6);
const R7: R = R(7);
const R8: R = R(8);
const R9: R = R(9);

const fn insn(code: u8, dst: R, src: R, offset: i16, immediate: i32) -> Insn {
    Insn {
        code,
        registers: dst.0 | src.0 << 4,
        offset,
        immediate,
    }
}

const fn load32(dst: R, src: R, offset: i16) -> Insn {
    insn(0x61, dst, src, offset, 0)
}
const fn load64(dst: R, src: R, offset: i16) -> Insn {
    insn(0x79, dst, src, offset, 0)
}
const fn store64(dst: R, offset: i16, src: R) -> Insn {
    insn(0x7b, dst, src, offset, 0)
}
const fn set(dst: R, value: i32) -> Insn {
    insn(0xb7, dst, R0, 0, value)
}
const fn copy(dst: R, src: R) -> Insn {
    insn(0xbf, dst, src, 0, 0)
}
const fn add(dst: R, value: i32) -> Insn {
    insn(0x07, dst, R0, 0, value)
}
const fn multiply(dst: R, src: R) -> Insn {
    insn(0x2f, dst, src, 0, 0)
}
const fn shift_right(dst: R, bits: i32) -> Insn {
    insn(0x77, dst, R0, 0, bits)
}
const fn or(dst: R, bits: i32) -> Insn {
    insn(0x47, dst, R0, 0, bits)
}
const fn negate(dst: R) -> Insn {
    insn(0x87, dst, R0, 0, 0)
}
const fn atomic_add(dst: R, offset: i16, src: R) -> Insn {
    insn(0xdb, dst, src, offset, 0)
}
/// Adds, and leaves in `src` what was there before.
const fn atomic_fetch_add(dst: R, offset: i16, src: R) -> Insn {
    insn(0xdb, dst, src, offset, 1)
}
const fn call(helper: i32) -> Insn {
    insn(0x85, R0, R0, 0, helper)
}
const fn exit() -> Insn {
    insn(0x95, R0, R0, 0, 0)
}

/// A condition on two registers, or on a register and a number, none of them signed.
enum When {
    Equal(R, i32),
    Unequal(R, i32),
    AtLeast(R, R),
    AtMost(R, R),
    Always,
}

/// Instructions with places to jump to.
#[derive(Default)]
struct Code {
    insns: Vec<Insn>,
    jumps: Vec<(usize, &'static str)>,
    places: Vec<(&'static str, usize)>,
}

impl Code {
    fn put(&mut self, insns: &[Insn]) {
        self.insns.extend_from_slice(insns);
    }

    /// The address of the row, in a register.
    fn row(&mut self, dst: R, row: i32) {
        const PSEUDO_MAP_VALUE: R = R2;
        self.put(&[
            insn(0x18, dst, PSEUDO_MAP_VALUE, 0, row),
            insn(0, R0, R0, 0, 0),
        ]);
    }

    fn jump(&mut self, place: &'static str, when: &When) {
        self.jumps.push((self.insns.len(), place));
        self.put(&[match when {
            When::Equal(a, value) => insn(0x15, *a, R0, 0, *value),
            When::Unequal(a, value) => insn(0x55, *a, R0, 0, *value),
            When::AtLeast(a, b) => insn(0x3d, *a, *b, 0, 0),
            When::AtMost(a, b) => insn(0xbd, *a, *b, 0, 0),
            When::Always => insn(0x05, R0, R0, 0, 0),
        }]);
    }

    fn here(&mut self, place: &'static str) {
        self.places.push((place, self.insns.len()));
    }

    fn finish(mut self) -> Vec<Insn> {
        for (at, place) in self.jumps {
            let (_, to) = self
                .places
                .iter()
                .find(|(name, _)| *name == place)
                .copied()
                .unwrap_or_else(|| unreachable!("every jump of these programs has its place"));
            self.insns[at].offset = i16::try_from(to - at - 1).unwrap_or(i16::MAX);
        }
        self.insns
    }
}

/// Where a counter stands in its row, in bytes.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "there are fewer than ten fields"
)]
const fn at(field: usize) -> i16 {
    (field * 8) as i16
}

/// Leaves at `pass` for what goes over loopback; else the packet's bytes are in R7, its
/// segments in R8, and the counters are in R9.
fn packet(code: &mut Code, rows: Rows) {
    code.put(&[load32(R6, R1, SKB_IFINDEX)]);
    code.jump("pass", &When::Equal(R6, LOOPBACK));
    code.put(&[load32(R7, R1, SKB_LEN), load32(R8, R1, SKB_GSO_SEGS)]);
    code.jump("segments", &When::Unequal(R8, 0));
    code.put(&[set(R8, 1)]);
    code.here("segments");
    code.row(R9, rows.counters);
}

/// Counts what comes in.
pub(super) fn ingress(rows: Rows) -> Vec<Insn> {
    let mut code = Code::default();
    packet(&mut code, rows);
    code.put(&[
        atomic_add(R9, at(field::RECEIVED_BYTES), R7),
        atomic_add(R9, at(field::RECEIVED_PACKETS), R8),
    ]);
    code.here("pass");
    code.put(&[set(R0, PASS), exit()]);
    code.finish()
}

/// Counts what goes out, and holds it to the rate.
pub(super) fn egress(rows: Rows) -> Vec<Insn> {
    let sent_by = at(field::SENT_BY_NS);
    let mut code = Code::default();
    packet(&mut code, rows);
    // How the packet is let through.
    code.put(&[set(R6, PASS)]);
    code.row(R3, rows.rate);
    code.put(&[load64(R3, R3, 0)]);
    code.jump("count", &When::Equal(R3, 0));

    // What the packet takes at the rate; of the first six registers a call leaves only R0.
    code.put(&[call(HELPER_KTIME_NS)]);
    code.row(R3, rows.rate);
    code.put(&[load64(R3, R3, 0), multiply(R3, R7), shift_right(R3, 10)]);
    code.put(&[load64(R4, R9, sent_by), copy(R2, R0), add(R2, -SAVED_NS)]);
    code.jump("move on", &When::AtLeast(R4, R2));
    code.put(&[store64(R9, sent_by, R2)]);
    code.here("move on");
    code.put(&[copy(R5, R3), atomic_fetch_add(R9, sent_by, R5)]);

    code.put(&[copy(R2, R0), add(R2, AHEAD_NS / 2)]);
    code.jump("count", &When::AtMost(R5, R2));
    code.put(&[set(R6, PASS_AND_SLOW), add(R2, AHEAD_NS / 2)]);
    code.jump("count", &When::AtMost(R5, R2));
    code.put(&[
        negate(R3),
        atomic_add(R9, sent_by, R3),
        atomic_add(R9, at(field::DROPPED_PACKETS), R8),
        set(R0, DROP_AND_SLOW),
        exit(),
    ]);

    code.here("count");
    code.put(&[
        atomic_add(R9, at(field::SENT_BYTES), R7),
        atomic_add(R9, at(field::SENT_PACKETS), R8),
        copy(R0, R6),
        exit(),
    ]);
    code.here("pass");
    code.put(&[set(R0, PASS), exit()]);
    code.finish()
}

/// Counts segments that TCP sends again, on connections made since.
pub(super) fn sock_ops(rows: Rows) -> Vec<Insn> {
    let mut code = Code::default();
    code.put(&[load32(R2, R1, OPS_OP)]);
    code.jump("ask", &When::Equal(R2, OP_ACTIVE_ESTABLISHED));
    code.jump("ask", &When::Equal(R2, OP_PASSIVE_ESTABLISHED));
    code.jump("done", &When::Unequal(R2, OP_RETRANSMIT));
    code.put(&[load32(R3, R1, OPS_ARGS_1)]);
    code.row(R4, rows.counters);
    code.put(&[atomic_add(R4, at(field::RETRANSMITTED), R3)]);
    code.jump("done", &When::Always);
    code.here("ask");
    // What other programs asked for stays asked for.
    code.put(&[
        load32(R2, R1, OPS_FLAGS),
        or(R2, FLAG_RETRANSMIT),
        call(HELPER_SOCK_OPS_FLAGS),
    ]);
    code.here("done");
    code.put(&[set(R0, PASS), exit()]);
    code.finish()
}
