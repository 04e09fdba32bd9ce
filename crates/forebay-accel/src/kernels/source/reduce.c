/* Sum, sum of magnitudes, least and greatest. Groups of 256 take a part each (reduce_parts); one
   group brings the parts together (reduce_whole). */
#define HALVE()\
    for (uint half_way = 128; half_way > 0; half_way /= 2) {                                       \
        SYNC();                                                                                    \
        if (item < half_way) {                                                                     \
            sums[item] += sums[item + half_way];                                                   \
            magnitudes[item] += magnitudes[item + half_way];                                       \
            leasts[item] = MIN(leasts[item], leasts[item + half_way]);                             \
            mosts[item] = MAX(mosts[item], mosts[item + half_way]);                                \
        }                                                                                          \
    }

KERNEL reduce_parts(GLOBAL const float *values, GLOBAL float *result, GLOBAL float *parts,
                    uint count) {
    SHARED float sums[256];
    SHARED float magnitudes[256];
    SHARED float leasts[256];
    SHARED float mosts[256];
    const uint item = LOCAL_X;
    float sum = 0.0f, magnitude = 0.0f, least = INFINITE, most = -INFINITE;
    for (uint i = GROUP_X * 256 + item; i < count; i += GROUPS_X * 256) {
        const float value = values[i];
        sum += value;
        magnitude += ABS(value);
        least = MIN(least, value);
        most = MAX(most, value);
    }
    sums[item] = sum;
    magnitudes[item] = magnitude;
    leasts[item] = least;
    mosts[item] = most;
    HALVE()
    if (item == 0) {
        parts[GROUP_X * 4] = sums[0];
        parts[GROUP_X * 4 + 1] = magnitudes[0];
        parts[GROUP_X * 4 + 2] = leasts[0];
        parts[GROUP_X * 4 + 3] = mosts[0];
    }
}

KERNEL reduce_whole(GLOBAL const float *values, GLOBAL float *result, GLOBAL float *parts,
                    uint groups) {
    SHARED float sums[256];
    SHARED float magnitudes[256];
    SHARED float leasts[256];
    SHARED float mosts[256];
    const uint item = LOCAL_X;
    const int is_part = item < groups;
    sums[item] = is_part ? parts[item * 4] : 0.0f;
    magnitudes[item] = is_part ? parts[item * 4 + 1] : 0.0f;
    leasts[item] = is_part ? parts[item * 4 + 2] : INFINITE;
    mosts[item] = is_part ? parts[item * 4 + 3] : -INFINITE;
    HALVE()
    if (item == 0) {
        result[0] = sums[0];
        result[1] = magnitudes[0];
        result[2] = leasts[0];
        result[3] = mosts[0];
    }
}
