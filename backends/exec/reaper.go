package exec

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/backends/internal/process"
)

// reap reaps the child pid if it is an orphan of a service: it carries a
// brand, or is in the session of a main process that is known. Others are left
// alone, for somebody else in this program may be waiting for them; but for
// process 1, to which all orphans are given.
func (b *Backend) reap(pid int) bool {
	mark, err := b.brandOf(pid)
	if err != nil {
		return false
	}
	ours := mark.is()
	if !ours {
		session, err := unix.Getsid(pid)
		ours = err == nil && b.leads(session, &mark)
	}
	if !ours && os.Getpid() != 1 {
		return false
	}
	stranger, ok := process.Reap(pid)
	if ok && ours {
		b.orphan(mark, stranger)
	}
	return ok
}
