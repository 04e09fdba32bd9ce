/* SHA-256 (FIPS 180-4) of each block of the input, one item a block. */
CONSTANT uint ROUND[64] = {
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u,
    0xab1c5ed5u, 0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu,
    0x9bdc06a7u, 0xc19bf174u, 0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu,
    0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau, 0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u,
    0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u, 0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu,
    0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u, 0xa2bfe8a1u, 0xa81a664bu,
    0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u, 0x19a4c116u,
    0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u,
    0xc67178f2u};

#define TURN(word, bits) (((word) >> (bits)) | ((word) << (32 - (bits))))

KERNEL sha256(GLOBAL const uchar *data, GLOBAL uchar *digests, uint count, uint block,
              uint blocks) {
    const uint number = GROUP_X * 64 + LOCAL_X;
    if (number >= blocks) {
        return;
    }
    const uint start = number * block;
    const uint length = count - start < block ? count - start : block;
    uint state[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                     0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    /* A one bit, zeros, and the length in bits fill the last 64 bytes. */
    const uint chunks = (length + 9 + 63) / 64;
    for (uint chunk = 0; chunk < chunks; chunk++) {
        uint words[16];
        for (uint i = 0; i < 16; i++) {
            const uint at = chunk * 64 + i * 4;
            uint word = 0;
            for (uint k = 0; k < 4; k++) {
                const uint byte = at + k;
                word <<= 8;
                if (byte < length) {
                    word |= data[start + byte];
                } else if (byte == length) {
                    word |= 0x80u;
                }
            }
            words[i] = word;
        }
        if (chunk == chunks - 1) {
            words[14] = length >> 29;
            words[15] = length << 3;
        }
        uint a = state[0], b = state[1], c = state[2], d = state[3];
        uint e = state[4], f = state[5], g = state[6], h = state[7];
        for (uint i = 0; i < 64; i++) {
            if (i >= 16) {
                const uint old = words[(i + 1) % 16], late = words[(i + 14) % 16];
                words[i % 16] += (TURN(old, 7) ^ TURN(old, 18) ^ (old >> 3)) + words[(i + 9) % 16] +
                                 (TURN(late, 17) ^ TURN(late, 19) ^ (late >> 10));
            }
            const uint first = h + (TURN(e, 6) ^ TURN(e, 11) ^ TURN(e, 25)) + ((e & f) ^ (~e & g)) +
                               ROUND[i] + words[i % 16];
            const uint second = (TURN(a, 2) ^ TURN(a, 13) ^ TURN(a, 22)) +
                                ((a & b) ^ (a & c) ^ (b & c));
            h = g;
            g = f;
            f = e;
            e = d + first;
            d = c;
            c = b;
            b = a;
            a = first + second;
        }
        state[0] += a;
        state[1] += b;
        state[2] += c;
        state[3] += d;
        state[4] += e;
        state[5] += f;
        state[6] += g;
        state[7] += h;
    }
    for (uint i = 0; i < 32; i++) {
        digests[number * 32 + i] = (uchar)(state[i / 4] >> (24 - 8 * (i % 4)));
    }
}
