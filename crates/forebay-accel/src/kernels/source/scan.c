/* Sums of all elements up to each. Each of at most 256 groups has a part of `part` elements: first
   the sum of each part (scan_totals), then each part from the sum of those before it (scan_parts). */
KERNEL scan_totals(GLOBAL const uint *values, GLOBAL uint *sums, GLOBAL uint *totals, uint count,
                   uint part) {
    SHARED uint own[256];
    const uint item = LOCAL_X, start = GROUP_X * part;
    const uint end = count - start < part ? count : start + part;
    uint total = 0;
    for (uint i = start + item; i < end; i += 256) {
        total += values[i];
    }
    own[item] = total;
    for (uint half_way = 128; half_way > 0; half_way /= 2) {
        SYNC();
        if (item < half_way) {
            own[item] += own[item + half_way];
        }
    }
    if (item == 0) {
        totals[GROUP_X] = own[0];
    }
}

KERNEL scan_parts(GLOBAL const uint *values, GLOBAL uint *sums, GLOBAL uint *totals, uint count,
                  uint part) {
    SHARED uint own[2][256];
    SHARED uint before;
    const uint item = LOCAL_X, start = GROUP_X * part;
    const uint end = count - start < part ? count : start + part;
    own[0][item] = item < GROUP_X ? totals[item] : 0;
    for (uint half_way = 128; half_way > 0; half_way /= 2) {
        SYNC();
        if (item < half_way) {
            own[0][item] += own[0][item + half_way];
        }
    }
    if (item == 0) {
        before = own[0][0];
    }
    for (uint tile = start; tile < end; tile += 256) {
        SYNC();
        const uint i = tile + item;
        own[0][item] = i < end ? values[i] : 0;
        uint from = 0;
        for (uint step = 1; step < 256; step *= 2) {
            SYNC();
            own[1 - from][item] = own[from][item] + (item >= step ? own[from][item - step] : 0);
            from = 1 - from;
        }
        const uint base = before;
        SYNC();
        if (i < end) {
            sums[i] = base + own[from][item];
        }
        if (item == 255) {
            before = base + own[from][255];
        }
    }
}
