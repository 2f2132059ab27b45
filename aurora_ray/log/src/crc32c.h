/* CRC-32C (Castagnoli), as google_crc32c computes it: what guards batches and stored values. */
#ifndef AURORA_CRC32C_H
#define AURORA_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* `crc` goes on from an earlier result; 0 begins. */
__attribute__((visibility("default"))) uint32_t ar_crc32c(uint32_t crc, const void *data, size_t bytes);

#endif
