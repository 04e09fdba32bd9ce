/* Stockham's transform: each pass reads one place and writes another in order, so that nothing is
   left to sort by reversed bits. Pairs of the same pass are apart by `half_way` butterflies of
   `width` neighbours. Places: 0 input, 1 output, 2 other. Direction: -1 forward, 1 back. */
KERNEL fft_pass(GLOBAL const float2 *input, GLOBAL float2 *output, GLOBAL float2 *other, uint from,
                uint to, uint half_way, uint width, uint pairs, float direction) {
    const uint pair = GROUP_X * 256 + LOCAL_X;
    if (pair >= pairs) {
        return;
    }
    GLOBAL const float2 *source = from == 0 ? input : from == 1 ? output : other;
    GLOBAL float2 *target = to == 1 ? output : other;
    const uint half_length = half_way * width;
    const uint series = pair / half_length * 2 * half_length;
    const uint within = pair % half_length;
    const uint turn = within / width, lane = within % width;
    const float2 a = source[series + within];
    const float2 b = source[series + within + half_length];
    const float angle = direction * (float)turn / (float)half_way;
    const float cosine = COS_PI(angle), sine = SIN_PI(angle);
    const float x = a.x - b.x, y = a.y - b.y;
    float2 sum, turned;
    sum.x = a.x + b.x;
    sum.y = a.y + b.y;
    turned.x = x * cosine - y * sine;
    turned.y = x * sine + y * cosine;
    const uint place = series + 2 * turn * width + lane;
    target[place] = sum;
    target[place + width] = turned;
}
