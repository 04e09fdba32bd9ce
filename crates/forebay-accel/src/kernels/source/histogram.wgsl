/* Counts in shared memory first, so that groups meet in global memory once for each bin. */
struct Bins {
    count: u32,
    bins: u32,
    low: f32,
    high: f32,
    scale: f32,
}

@group(0) @binding(0) var<storage, read> values: array<f32>;
@group(0) @binding(1) var<storage, read_write> counts: array<atomic<u32>>;
@group(1) @binding(0) var<uniform> about: Bins;

var<workgroup> own: array<atomic<u32>, 4096>;

@compute @workgroup_size(256)
fn histogram_clear(@builtin(global_invocation_id) item: vec3<u32>) {
    if item.x < about.bins {
        atomicStore(&counts[item.x], 0u);
    }
}

@compute @workgroup_size(256)
fn histogram_count(
    @builtin(local_invocation_index) item: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    for (var bin = item; bin < about.bins; bin += 256u) {
        atomicStore(&own[bin], 0u);
    }
    workgroupBarrier();
    for (var i = group.x * 256u + item; i < about.count; i += groups.x * 256u) {
        let value = values[i];
        /* What is not a number is in no bin. */
        if value >= about.low && value <= about.high {
            let bin = u32((value - about.low) * about.scale);
            atomicAdd(&own[min(bin, about.bins - 1u)], 1u);
        }
    }
    workgroupBarrier();
    for (var bin = item; bin < about.bins; bin += 256u) {
        let found = atomicLoad(&own[bin]);
        if found > 0u {
            atomicAdd(&counts[bin], found);
        }
    }
}
