/* A cell over all steps of a series, then a linear head. One group of 64 a series; its state is in
   shared memory. Weights are a row of gates (i, f, g, o) for each input, for each unit of the state,
   and for the bias; then a row of outputs for each unit, and their bias. */
#define SIGMOID(z) (1.0f / (1.0f + EXP(-(z))))

KERNEL lstm(GLOBAL const float *weights, GLOBAL const float *inputs, GLOBAL float *outputs,
            uint series, uint steps, uint width, uint hidden, uint targets) {
    SHARED float states[2][256];
    SHARED float cells[256];
    const uint item = LOCAL_X, gates = 4 * hidden;
    GLOBAL const float *by_state = weights + gates * width;
    GLOBAL const float *bias = by_state + gates * hidden;
    GLOBAL const float *head = bias + gates;
    for (uint unit = item; unit < hidden; unit += 64) {
        states[0][unit] = 0.0f;
        cells[unit] = 0.0f;
    }
    uint now = 0;
    for (uint step = 0; step < steps; step++) {
        GLOBAL const float *x = inputs + (GROUP_X * steps + step) * width;
        SYNC();
        for (uint unit = item; unit < hidden; unit += 64) {
            float i = bias[unit], f = bias[hidden + unit];
            float g = bias[2 * hidden + unit], o = bias[3 * hidden + unit];
            for (uint k = 0; k < width; k++) {
                GLOBAL const float *row = weights + gates * k + unit;
                const float value = x[k];
                i = MAD(row[0], value, i);
                f = MAD(row[hidden], value, f);
                g = MAD(row[2 * hidden], value, g);
                o = MAD(row[3 * hidden], value, o);
            }
            for (uint k = 0; k < hidden; k++) {
                GLOBAL const float *row = by_state + gates * k + unit;
                const float value = states[now][k];
                i = MAD(row[0], value, i);
                f = MAD(row[hidden], value, f);
                g = MAD(row[2 * hidden], value, g);
                o = MAD(row[3 * hidden], value, o);
            }
            const float cell = SIGMOID(f) * cells[unit] + SIGMOID(i) * TANH(g);
            cells[unit] = cell;
            states[1 - now][unit] = SIGMOID(o) * TANH(cell);
        }
        now = 1 - now;
    }
    SYNC();
    for (uint target = item; target < targets; target += 64) {
        float sum = head[targets * hidden + target];
        for (uint k = 0; k < hidden; k++) {
            sum = MAD(head[targets * k + target], states[now][k], sum);
        }
        outputs[GROUP_X * targets + target] = sum;
    }
}
