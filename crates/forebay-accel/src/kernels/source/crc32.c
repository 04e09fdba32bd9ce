/* CRC-32 (IEEE 802.3) of each block of the input, one item a block, four bits at a time. */
CONSTANT uint NIBBLE[16] = {0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu,
                            0x76dc4190u, 0x6b6b51f4u, 0x4db26158u, 0x5005713cu,
                            0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu,
                            0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu};

KERNEL crc32(GLOBAL const uchar *data, GLOBAL uint *sums, uint count, uint block, uint blocks) {
    const uint number = GROUP_X * 64 + LOCAL_X;
    if (number >= blocks) {
        return;
    }
    const uint start = number * block;
    const uint end = count - start < block ? count : start + block;
    uint sum = 0xffffffffu;
    for (uint i = start; i < end; i++) {
        sum ^= data[i];
        sum = (sum >> 4) ^ NIBBLE[sum & 15];
        sum = (sum >> 4) ^ NIBBLE[sum & 15];
    }
    sums[number] = ~sum;
}
