/* c = a b, all by rows. A group of 16 x 16 items computes 64 x 64 numbers, 4 x 4 each, from tiles
   that it brings to shared memory together: each number of a and b is read once for 64 uses. */
struct Sizes {
    rows: u32,
    columns: u32,
    inner: u32,
}

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(1) @binding(0) var<uniform> sizes: Sizes;

var<workgroup> tile_a: array<array<f32, 64>, 16>;
var<workgroup> tile_b: array<array<f32, 64>, 16>;

@compute @workgroup_size(16, 16)
fn matmul(@builtin(local_invocation_id) own: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let item = own.y * 16u + own.x;
    let row = group.y * 64u;
    let column = group.x * 64u;
    var sums: array<vec4<f32>, 4>;
    for (var start = 0u; start < sizes.inner; start += 16u) {
        for (var turn = 0u; turn < 4u; turn++) {
            let at = turn * 256u + item;
            let r = row + at / 16u;
            let k = start + at % 16u;
            var left = 0.0;
            if r < sizes.rows && k < sizes.inner {
                left = a[r * sizes.inner + k];
            }
            tile_a[at % 16u][at / 16u] = left;
            let q = start + at / 64u;
            let s = column + at % 64u;
            var right = 0.0;
            if q < sizes.inner && s < sizes.columns {
                right = b[q * sizes.columns + s];
            }
            tile_b[at / 64u][at % 64u] = right;
        }
        workgroupBarrier();
        for (var k = 0u; k < 16u; k++) {
            let right = vec4<f32>(
                tile_b[k][own.x],
                tile_b[k][own.x + 16u],
                tile_b[k][own.x + 32u],
                tile_b[k][own.x + 48u],
            );
            for (var i = 0u; i < 4u; i++) {
                sums[i] += tile_a[k][own.y + 16u * i] * right;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let r = row + own.y + 16u * i;
            let s = column + own.x + 16u * j;
            if r < sizes.rows && s < sizes.columns {
                c[r * sizes.columns + s] = sums[i][j];
            }
        }
    }
}
