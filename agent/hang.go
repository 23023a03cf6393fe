package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/byggvir"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/sockets"
)

// tellHang tells that a service hangs or goes on, and ends one that counts as unhealthy
// for it. The incarnation may be no more.
func (a *Agent) tellHang(h byggvir.Hang) {
	if h.Ill {
		a.background.Go(func() { a.endHung(h) }) // which may take a while
		return
	}
	kind, reason, detail, level := service.NoticeHung, h.Reason, h.Why, slog.LevelWarn
	if !h.Lasts() {
		kind, detail, level = service.NoticeHungOver, h.Detail, slog.LevelInfo
	}
	told := false
	a.registry.Revise(h.Service, func(s *service.Status) skirnir.News {
		if !s.Machine.State.Alive() || s.Machine.Incarnation != h.Incarnation {
			return skirnir.News{Silent: true}
		}
		s.Hung, told = h.Hang, true
		return skirnir.News{Kind: kind, Reason: reason, Detail: detail}
	})
	if told {
		a.cfg.Log.Log(a.ctx, level, kind.String(), "service", h.Service, "reason", reason, "detail", detail)
	}
}

// endHung has it go the way of one whose checks failed. One that ends anyway, that was
// frozen meanwhile, or that somebody has stopped with a signal of ours, does not.
func (a *Agent) endHung(h byggvir.Hang) {
	err := a.thjalfi.Hang(a.ctx, h.Service, h.Incarnation, h.Why, h.Signal)
	if err != nil && service.KindOf(err) != service.NotRunning {
		a.cfg.Log.Info("a service that hangs is not ended", "service", h.Service, "error", err)
	}
}

// endHang tells that a hang is over since the incarnation is.
func (a *Agent) endHang(name service.Name, h service.Hang) {
	detail := "ended with the service, after " + time.Since(h.Since).Round(time.Second).String()
	a.registry.Update(name, skirnir.News{Kind: service.NoticeHungOver, Detail: detail}, func(*service.Status) {})
	a.cfg.Log.Info(service.NoticeHungOver.String(), "service", name, "detail", detail)
}

// tellBlind tells that it is not seen when a service takes no connections, and has the
// doctor tell.
func (a *Agent) tellBlind(err error) {
	a.mu.Lock()
	a.sightless = err
	a.mu.Unlock()
	if err != nil {
		a.cfg.Log.Warn("queues of listening sockets can not be looked at; it is tried again", "error", err)
	}
}

// unseenQueues tells the doctor of that. The caller holds mu.
func (a *Agent) unseenQueues() []service.Finding {
	if a.sightless == nil {
		return nil
	}
	return []service.Finding{{
		Level: service.SeverityWarning, Title: "that a service accepts no connections is not seen", Detail: a.sightless.Error(),
		Fix: "Load the kernel's modules tcp_diag and unix_diag; the agent tries again.",
	}}
}

// tables is what byggvir sees of the kernel's.
type tables struct{ *Agent }

func (t tables) Load() (float64, error) { return t.cfg.Procfs.Load() }

func (t tables) Queues() ([]sockets.Queue, error) {
	if t.cfg.queues != nil {
		return t.cfg.queues()
	}
	return sockets.Queues()
}

func (t tables) Clients(q sockets.Queue) ([]uint64, error) { return q.Clients() }

// Owner goes by the cgroup of who made the socket, which some kernels tell; else by who
// has it open.
func (t tables) Owner(q sockets.Queue) (service.Name, bool) {
	running := t.registry.List(service.PublicRunning)
	for _, s := range running {
		if q.Cgroup != 0 && s.Ref.Cgroup != "" && cgroupID(filepath.Join(t.cfg.Facts.CgroupRoot, s.Ref.Cgroup)) == q.Cgroup {
			return s.Name, true
		}
	}
	holders, err := t.cfg.Procfs.HoldersOf(q.Inode)
	if err != nil {
		return service.Name{}, false // they can not be listed
	}
	for _, pid := range holders {
		if name, known := t.of(pid, running); known {
			return name, true
		}
	}
	return service.Name{}, false
}

// of is whose a process is: of the service in whose cgroup it is, or that one of its
// ancestors is the main process of.
func (t tables) of(pid int, running []*service.Status) (service.Name, bool) {
	at, err := t.cfg.Procfs.Cgroup(pid)
	for _, s := range running {
		if group := s.Ref.Cgroup; err == nil && group != "" && (at == group || strings.HasPrefix(at, group+"/")) {
			return s.Name, true
		}
	}
	for pid > 1 {
		for _, s := range running {
			if s.PID() == pid {
				return s.Name, true
			}
		}
		p, err := t.cfg.Procfs.Process(pid)
		if err != nil {
			break // it has ended
		}
		pid = p.PPID
	}
	return service.Name{}, false
}

// cgroupID is the number by which the kernel names a cgroup: that of its directory, but
// on 32 bits. 0 is none.
func cgroupID(dir string) uint64 {
	info, err := os.Stat(dir)
	if err != nil {
		return 0
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
