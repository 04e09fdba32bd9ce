// Sum, sum of magnitudes, least and greatest. Groups of 256 take a part each (reduce_parts); one
// group brings the parts together (reduce_whole), and `count` is then the number of parts.
struct Sizes { count: u32 }

@group(0) @binding(0) var<storage, read> values: array<f32>;
@group(0) @binding(1) var<storage, read_write> result: array<f32>;
@group(0) @binding(2) var<storage, read_write> parts: array<f32>;
@group(0) @binding(3) var<uniform> sizes: Sizes;

// Sum, sum of magnitudes, least, greatest.
var<workgroup> shared_parts: array<vec4<f32>, 256>;

fn together(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return vec4(a.x + b.x, a.y + b.y, min(a.z, b.z), max(a.w, b.w));
}

fn halve(item: u32) {
    for (var half_way = 128u; half_way > 0u; half_way /= 2u) {
        workgroupBarrier();
        if (item < half_way) {
            shared_parts[item] = together(shared_parts[item], shared_parts[item + half_way]);
        }
    }
}

@compute @workgroup_size(256)
fn reduce_parts(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    // Least and greatest begin with a value: there is no infinity to begin with.
    var part = vec4(0.0, 0.0, values[0], values[0]);
    for (var i = group.x * 256u + local.x; i < sizes.count; i += groups.x * 256u) {
        let value = values[i];
        part = together(part, vec4(value, abs(value), value, value));
    }
    shared_parts[local.x] = part;
    halve(local.x);
    if (local.x == 0u) {
        let whole = shared_parts[0];
        parts[group.x * 4u] = whole.x;
        parts[group.x * 4u + 1u] = whole.y;
        parts[group.x * 4u + 2u] = whole.z;
        parts[group.x * 4u + 3u] = whole.w;
    }
}

@compute @workgroup_size(256)
fn reduce_whole(@builtin(local_invocation_id) local: vec3<u32>) {
    var part = vec4(0.0, 0.0, parts[2], parts[3]);
    if (local.x < sizes.count) {
        let at = local.x * 4u;
        part = vec4(parts[at], parts[at + 1u], parts[at + 2u], parts[at + 3u]);
    }
    shared_parts[local.x] = part;
    halve(local.x);
    if (local.x == 0u) {
        let whole = shared_parts[0];
        result[0] = whole.x;
        result[1] = whole.y;
        result[2] = whole.z;
        result[3] = whole.w;
    }
}
