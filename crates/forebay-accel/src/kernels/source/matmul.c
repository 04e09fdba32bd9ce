/* c = a b, all by rows. A group of 16 x 16 items computes 64 x 64 numbers, 4 x 4 each, from tiles
   that it brings to shared memory together: each number of a and b is read once for 64 uses. */
KERNEL matmul(GLOBAL const float *a, GLOBAL const float *b, GLOBAL float *c, uint rows, uint columns,
              uint inner) {
    SHARED float tile_a[16][64];
    SHARED float tile_b[16][64];
    const uint x = LOCAL_X, y = LOCAL_Y, item = y * 16 + x;
    const uint row = GROUP_Y * 64, column = GROUP_X * 64;
    float sums[4][4];
    for (uint i = 0; i < 4; i++) {
        for (uint j = 0; j < 4; j++) {
            sums[i][j] = 0.0f;
        }
    }
    for (uint start = 0; start < inner; start += 16) {
        for (uint turn = 0; turn < 4; turn++) {
            const uint at = turn * 256 + item;
            const uint r = row + at / 16, k = start + at % 16;
            tile_a[at % 16][at / 16] = r < rows && k < inner ? a[r * inner + k] : 0.0f;
            const uint q = start + at / 64, s = column + at % 64;
            tile_b[at / 64][at % 64] = q < inner && s < columns ? b[q * columns + s] : 0.0f;
        }
        SYNC();
        for (uint k = 0; k < 16; k++) {
            for (uint i = 0; i < 4; i++) {
                const float left = tile_a[k][y + 16 * i];
                for (uint j = 0; j < 4; j++) {
                    sums[i][j] = MAD(left, tile_b[k][x + 16 * j], sums[i][j]);
                }
            }
        }
        SYNC();
    }
    for (uint i = 0; i < 4; i++) {
        for (uint j = 0; j < 4; j++) {
            const uint r = row + y + 16 * i, s = column + x + 16 * j;
            if (r < rows && s < columns) {
                c[r * columns + s] = sums[i][j];
            }
        }
    }
}
