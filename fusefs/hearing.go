//go:build !cage_deaf

package fusefs

// hearing is the kernel that a mount tells what is not valid any more. With the tag
// cage_deaf it is one that does not listen, so that tests can show that they notice.
func hearing(k kernel) kernel { return k }
