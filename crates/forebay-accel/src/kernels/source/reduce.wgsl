/* Sum, sum of magnitudes, least and greatest. Groups of 256 take a part each (reduce_parts); one
   group brings the parts together (reduce_whole). Least and greatest are by comparisons, which are
   false for what is no number: what min() makes of that differs between devices. */
@group(0) @binding(0) var<storage, read> values: array<f32>;
@group(0) @binding(1) var<storage, read_write> result: array<f32>;
@group(0) @binding(2) var<storage, read_write> parts: array<f32>;
/* Of values, or of parts. */
@group(1) @binding(0) var<uniform> count: u32;

/* The bits of infinity: WGSL has no constant for it. */
var<private> infinite_bits: u32 = 0x7f800000u;

struct Part {
    sum: f32,
    magnitude: f32,
    least: f32,
    most: f32,
}

var<workgroup> all: array<Part, 256>;

fn nothing() -> Part {
    let infinite = bitcast<f32>(infinite_bits);
    return Part(0.0, 0.0, infinite, -infinite);
}

fn together(a: Part, b: Part) -> Part {
    var both = Part(a.sum + b.sum, a.magnitude + b.magnitude, a.least, a.most);
    if b.least < both.least {
        both.least = b.least;
    }
    if b.most > both.most {
        both.most = b.most;
    }
    return both;
}

fn halve(item: u32) {
    for (var half_way = 128u; half_way > 0u; half_way /= 2u) {
        workgroupBarrier();
        if item < half_way {
            all[item] = together(all[item], all[item + half_way]);
        }
    }
}

@compute @workgroup_size(256)
fn reduce_parts(
    @builtin(local_invocation_index) item: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    var own = nothing();
    for (var i = group.x * 256u + item; i < count; i += groups.x * 256u) {
        let value = values[i];
        own = together(own, Part(value, abs(value), value, value));
    }
    all[item] = own;
    halve(item);
    if item == 0u {
        parts[group.x * 4u] = all[0].sum;
        parts[group.x * 4u + 1u] = all[0].magnitude;
        parts[group.x * 4u + 2u] = all[0].least;
        parts[group.x * 4u + 3u] = all[0].most;
    }
}

@compute @workgroup_size(256)
fn reduce_whole(@builtin(local_invocation_index) item: u32) {
    var own = nothing();
    if item < count {
        own = Part(parts[item * 4u], parts[item * 4u + 1u], parts[item * 4u + 2u], parts[item * 4u + 3u]);
    }
    all[item] = own;
    halve(item);
    if item == 0u {
        result[0] = all[0].sum;
        result[1] = all[0].magnitude;
        result[2] = all[0].least;
        result[3] = all[0].most;
    }
}
