/* Sums of all elements up to each. Each of at most 256 groups has a part of `part` elements: first
   the sum of each part (scan_totals), then each part from the sum of those before it (scan_parts). */
struct Sizes {
    count: u32,
    part: u32,
}

@group(0) @binding(0) var<storage, read> values: array<u32>;
@group(0) @binding(1) var<storage, read_write> sums: array<u32>;
@group(0) @binding(2) var<storage, read_write> totals: array<u32>;
@group(1) @binding(0) var<uniform> sizes: Sizes;

var<workgroup> own: array<array<u32, 256>, 2>;
var<workgroup> before: u32;

/* Brings what all items of the group have in `own[0]` together in its first. */
fn halve(item: u32) {
    for (var half_way = 128u; half_way > 0u; half_way /= 2u) {
        workgroupBarrier();
        if item < half_way {
            own[0][item] += own[0][item + half_way];
        }
    }
}

@compute @workgroup_size(256)
fn scan_totals(
    @builtin(local_invocation_index) item: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let start = group.x * sizes.part;
    let end = start + min(sizes.count - start, sizes.part);
    var total = 0u;
    for (var i = start + item; i < end; i += 256u) {
        total += values[i];
    }
    own[0][item] = total;
    halve(item);
    if item == 0u {
        totals[group.x] = own[0][0];
    }
}

@compute @workgroup_size(256)
fn scan_parts(
    @builtin(local_invocation_index) item: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let start = group.x * sizes.part;
    let end = start + min(sizes.count - start, sizes.part);
    own[0][item] = 0u;
    if item < group.x {
        own[0][item] = totals[item];
    }
    halve(item);
    if item == 0u {
        before = own[0][0];
    }
    for (var tile = start; tile < end; tile += 256u) {
        workgroupBarrier();
        let i = tile + item;
        own[0][item] = 0u;
        if i < end {
            own[0][item] = values[i];
        }
        var current = 0u;
        for (var step = 1u; step < 256u; step *= 2u) {
            workgroupBarrier();
            var sum = own[current][item];
            if item >= step {
                sum += own[current][item - step];
            }
            own[1u - current][item] = sum;
            current = 1u - current;
        }
        let base = before;
        workgroupBarrier();
        if i < end {
            sums[i] = base + own[current][item];
        }
        if item == 255u {
            before = base + own[current][255];
        }
    }
}
