/* Counts in shared memory first, so that groups meet in global memory once for each bin. */
KERNEL histogram_clear(GLOBAL const float *values, GLOBAL uint *counts, uint count, uint bins,
                       float low, float high, float scale) {
    const uint bin = GROUP_X * 256 + LOCAL_X;
    if (bin < bins) {
        counts[bin] = 0;
    }
}

KERNEL histogram_count(GLOBAL const float *values, GLOBAL uint *counts, uint count, uint bins,
                       float low, float high, float scale) {
    SHARED uint own[4096];
    const uint item = LOCAL_X;
    for (uint bin = item; bin < bins; bin += 256) {
        own[bin] = 0;
    }
    SYNC();
    for (uint i = GROUP_X * 256 + item; i < count; i += GROUPS_X * 256) {
        const float value = values[i];
        /* What is not a number is in no bin. */
        if (value >= low && value <= high) {
            const uint bin = (uint)MUL(ADD(value, -low), scale);
            ADD_SHARED(&own[bin < bins ? bin : bins - 1], 1u);
        }
    }
    SYNC();
    for (uint bin = item; bin < bins; bin += 256) {
        if (own[bin] > 0) {
            ADD_GLOBAL(&counts[bin], own[bin]);
        }
    }
}
