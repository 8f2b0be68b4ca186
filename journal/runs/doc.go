// Package runs keeps a map from keys to values, both bytes, in a directory of
// immutable sorted files. It is made for what is too big for memory and changes
// in batches: each batch becomes a new file, a run, which hides what older runs
// say of its keys. Runs of like size are merged in the background, so that there
// are never more than about the binary logarithm of the size, and each byte is written as often.
//
// It promises that a View does not change while it is held, and that no file is
// removed which a View has. It owns its directory. It does not decide which runs
// count after a restart: whoever uses it writes View.Names where a power cut
// cannot tear it, and opens the Store with them; other files are removed then.
// It knows nothing of what keys and values mean.
//
// # The file of a run
//
// Its name is its number, decimal. Fixed integers are little endian, "varint" is an unsigned varint.
//
//	 0  8  "CAGERUN\n"
//	 8  4  version, 1
//	12  4  zero
//	16     blocks, one behind the other
//	       index: for each block
//	           varint length of its first key, the key
//	           varint length of the block
//	           4      CRC32C of the block
//	-24 8  where the index begins
//	-16 4  bytes of the index
//	-12 4  CRC32C of the index
//	 -8 4  number of blocks
//	 -4 4  the sum: CRC32C of the 20 bytes before. Through the index it covers every byte of the file but the first 16
//
// A block is entries in ascending order of their keys, none twice, then for each
// entry where it begins in the block (2 bytes), then their number (2 bytes). It
// ends before it would pass 16 KiB, unless a single entry is longer.
//
//	varint length of the key, the key
//	varint 0: the key is deleted; else length of the value plus 1, the value
package runs
