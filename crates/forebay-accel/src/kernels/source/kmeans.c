/* One step of Lloyd's algorithm. Every sum has one order, that of the implementation on the CPU, so
   that a point between two centroids has the same label everywhere. */
KERNEL kmeans_label(GLOBAL const float *points, GLOBAL const float *centroids, GLOBAL uint *labels,
                    GLOBAL float *means, GLOBAL float *sums, GLOBAL uint *members, uint count,
                    uint clusters, uint dimensions, uint part, uint parts) {
    const uint point = GROUP_X * 64 + LOCAL_X;
    if (point >= count) {
        return;
    }
    uint label = 0;
    float least = INFINITE;
    for (uint cluster = 0; cluster < clusters; cluster++) {
        float distance = 0.0f;
        for (uint i = 0; i < dimensions; i++) {
            const float apart =
                ADD(points[point * dimensions + i], -centroids[cluster * dimensions + i]);
            distance = ADD(distance, MUL(apart, apart));
        }
        if (distance < least) {
            least = distance;
            label = cluster;
        }
    }
    labels[point] = label;
}

/* An item for each part of the points and each coordinate of each cluster. */
KERNEL kmeans_sums(GLOBAL const float *points, GLOBAL const float *centroids, GLOBAL uint *labels,
                   GLOBAL float *means, GLOBAL float *sums, GLOBAL uint *members, uint count,
                   uint clusters, uint dimensions, uint part, uint parts) {
    const uint item = GROUP_X * 64 + LOCAL_X, coordinates = clusters * dimensions;
    if (item >= parts * coordinates) {
        return;
    }
    const uint start = item / coordinates * part;
    const uint end = count - start < part ? count : start + part;
    const uint cluster = item % coordinates / dimensions, dimension = item % dimensions;
    float sum = 0.0f;
    uint found = 0;
    for (uint point = start; point < end; point++) {
        if (labels[point] == cluster) {
            sum = ADD(sum, points[point * dimensions + dimension]);
            found++;
        }
    }
    sums[item] = sum;
    if (dimension == 0) {
        members[item / dimensions] = found;
    }
}

/* A cluster without points stays where it was. */
KERNEL kmeans_means(GLOBAL const float *points, GLOBAL const float *centroids, GLOBAL uint *labels,
                    GLOBAL float *means, GLOBAL float *sums, GLOBAL uint *members, uint count,
                    uint clusters, uint dimensions, uint part, uint parts) {
    const uint item = GROUP_X * 64 + LOCAL_X, coordinates = clusters * dimensions;
    if (item >= coordinates) {
        return;
    }
    float sum = 0.0f;
    uint found = 0;
    for (uint i = 0; i < parts; i++) {
        sum = ADD(sum, sums[i * coordinates + item]);
        found += members[i * clusters + item / dimensions];
    }
    means[item] = found > 0 ? sum / (float)found : centroids[item];
}
