/* Bitonic sort in which every comparison puts the smaller element first. Elements beyond the end
   count as greatest: nothing ever moves them, so pairs with one are left out.

   A step of `span` first compares blocks of twice `span` with their mirror image (flip), then ever
   smaller distances. What stays within 512 elements is done in shared memory. */
#define ORDER(place, low, high)                                                                    \
    if (place[low] > place[high]) {                                                                \
        const uint other = place[low];                                                             \
        place[low] = place[high];                                                                  \
        place[high] = other;                                                                       \
    }

#define LOAD(from)                                                                                 \
    own[item] = start + item < count ? from[start + item] : 0xffffffffu;                           \
    own[item + 256] = start + item + 256 < count ? from[start + item + 256] : 0xffffffffu;

#define STORE()                                                                                    \
    if (start + item < count) {                                                                    \
        sorted[start + item] = own[item];                                                          \
    }                                                                                              \
    if (start + item + 256 < count) {                                                              \
        sorted[start + item + 256] = own[item + 256];                                              \
    }

/* From `values` to `sorted`, in blocks of 512. */
KERNEL sort_start(GLOBAL const uint *values, GLOBAL uint *sorted, uint count, uint span) {
    SHARED uint own[512];
    const uint item = LOCAL_X, start = GROUP_X * 512;
    LOAD(values)
    for (uint half_way = 1; half_way <= 256; half_way *= 2) {
        SYNC();
        {
            const uint block = item / half_way * 2 * half_way, at = item % half_way;
            ORDER(own, block + at, block + 2 * half_way - 1 - at)
        }
        for (uint distance = half_way / 2; distance > 0; distance /= 2) {
            SYNC();
            const uint low = item / distance * 2 * distance + item % distance;
            ORDER(own, low, low + distance)
        }
    }
    SYNC();
    STORE()
}

KERNEL sort_flip(GLOBAL const uint *values, GLOBAL uint *sorted, uint count, uint span) {
    const uint pair = GROUP_X * 256 + LOCAL_X;
    const uint block = pair / span * 2 * span, at = pair % span;
    const uint low = block + at, high = block + 2 * span - 1 - at;
    if (high < count) {
        ORDER(sorted, low, high)
    }
}

KERNEL sort_step(GLOBAL const uint *values, GLOBAL uint *sorted, uint count, uint span) {
    const uint pair = GROUP_X * 256 + LOCAL_X;
    const uint low = pair / span * 2 * span + pair % span;
    if (low + span < count) {
        ORDER(sorted, low, low + span)
    }
}

/* All distances up to 256. */
KERNEL sort_finish(GLOBAL const uint *values, GLOBAL uint *sorted, uint count, uint span) {
    SHARED uint own[512];
    const uint item = LOCAL_X, start = GROUP_X * 512;
    LOAD(sorted)
    for (uint distance = 256; distance > 0; distance /= 2) {
        SYNC();
        const uint low = item / distance * 2 * distance + item % distance;
        ORDER(own, low, low + distance)
    }
    SYNC();
    STORE()
}
