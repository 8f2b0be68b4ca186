// Package history keeps records of operations that processes did at the same
// time on shared objects, and tells whether they are linearizable: whether each
// can have happened at one moment between its invocation and its answer. It knows
// nothing of file systems: who records translates system calls into the few
// operations of the models below, one Record for each object that a call touches.
//
// An object has one Kind, which says what its operations mean:
//
//	Register   the bytes of a piece of a page, a mode, a time: what was written last is read
//	Size       of a file: changed by writes beyond the end, appends and truncations
//	Name       in a directory: there or not, and which file it is
//	Links      of a file: how many names it has
//	Lock       shared or exclusive, of processes
//
// A history of many objects is linearizable if that of each object is (Herlihy
// and Wing, 1990), so objects are checked one by one (Check).
package history
