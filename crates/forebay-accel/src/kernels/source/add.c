/* Groups of 256, each item as many elements as the groups leave it. */
KERNEL add(GLOBAL const float *a, GLOBAL const float *b, GLOBAL float *sum, uint count) {
    for (uint i = GROUP_X * 256 + LOCAL_X; i < count; i += GROUPS_X * 256) {
        sum[i] = ADD(a[i], b[i]);
    }
}
