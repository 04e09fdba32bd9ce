/* Groups of 256, each item as many elements as the groups leave it. */
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> sum: array<f32>;
@group(1) @binding(0) var<uniform> count: u32;

@compute @workgroup_size(256)
fn add(@builtin(global_invocation_id) item: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = item.x; i < count; i += groups.x * 256u) {
        sum[i] = a[i] + b[i];
    }
}
