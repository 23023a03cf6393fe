package api

import (
	"context"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/logfile"
)

// Agent is what the API serves. Every method may be called by many goroutines
// at once; every error is a *service.Error or that of the context.
type Agent interface {
	Lifecycle
	Registry
	Resources
	News
	Catalog
	Machine
}

// Lifecycle starts and ends services. actor, here and below, is who asks.
type Lifecycle interface {
	// Start answers once the service is ready.
	Start(context.Context, service.Name, service.StartOptions) (*service.Status, error)
	// Stop answers once nothing of it is left.
	Stop(context.Context, service.Name, service.StopOptions) (*service.Status, error)
	Restart(context.Context, service.Name, service.StopOptions) (*service.Status, error)
	// RollingRestart restarts services one after the other, tells each step, and ends with
	// the error of the first that fails, or when ctx ends.
	RollingRestart(ctx context.Context, names []service.Name, opts service.RollingOptions, tell func(service.Rolling) error) error
	Signal(ctx context.Context, name service.Name, sig syscall.Signal, actor string) (*service.Status, error)
	// ReloadService answers once the signal is sent, or the program has ended.
	ReloadService(ctx context.Context, name service.Name, actor string) (*service.Status, error)
	// Freeze answers once the kernel keeps every process of it from running, and Thaw
	// once it lets them again.
	Freeze(ctx context.Context, name service.Name, actor string) (*service.Status, error)
	Thaw(ctx context.Context, name service.Name, actor string) (*service.Status, error)
}

// Registry tells what is known without asking the host.
type Registry interface {
	Status(service.Name) (*service.Status, error)
	// List is every service whose public state is one of states, or every one
	// if none is given, ordered by name.
	List(states ...service.Public) []*service.Status
	// Exits gives the latest n ends, latest first; n < 1 means all that are kept.
	Exits(name service.Name, n int) ([]service.ExitRecord, error)
	// LogFile is where the output of a service goes that is not in the journal. That
	// its output is not kept is an error of Kind Conflict; the file need not exist.
	LogFile(service.Name) (*logfile.File, error)
	// Outputs is where the output of a service went, oldest first; empty when all
	// of it is in the file. FindOutputs asks the journal what it calls streams that
	// are not known yet, first.
	Outputs(service.Name) []service.Output
	FindOutputs(context.Context, service.Name) ([]service.Output, error)
}

// Resources asks the host about one service.
type Resources interface {
	// Usage measures, and tells when. Of a service that does not run it says
	// service.NotRunning.
	Usage(context.Context, service.Name) (service.Usage, time.Time, error)
	// UsageHistory tells what a service used since a time, oldest first, in steps of at
	// least step, and at most as many as most, 0 for any number. That its
	// definition does not ask for it is an error of Kind Conflict.
	UsageHistory(name service.Name, since time.Time, step time.Duration, most int) ([]service.Sample, error)
	// Recommend tells what limits would fit what a service used since a time. That too
	// little is known of it is an error of Kind Conflict.
	Recommend(ctx context.Context, name service.Name, since time.Time) (service.Advice, error)
	// WatchUsage gives what services use until ctx ends and the channel is closed, of
	// each at once and then after about an interval; of all that run if none is named.
	// For a reader that is too slow there are fewer, each of a longer time.
	WatchUsage(ctx context.Context, interval time.Duration, names ...service.Name) <-chan service.Used
	// Limits verifies what holds now; of a stopped service it tells what its
	// definition asks for.
	Limits(context.Context, service.Name) (service.Applied, error)
	// SetLimits sets what is set in limits and warnings, and leaves the rest.
	SetLimits(ctx context.Context, name service.Name, limits service.Limits, warnings service.Warnings, force bool, actor string) (service.Applied, error)
	// CheckHealth tells how a service is; of one whose check is its process it
	// looks now.
	CheckHealth(context.Context, service.Name) (service.Health, error)
	// CheckNow has a running service checked at once; what is not checked is an error of
	// Kind NotRunning.
	CheckNow(context.Context, service.Name) (service.Health, error)
	// Checks are the latest checks of the incarnation that runs, the latest last.
	Checks(service.Name) ([]service.Probe, error)
	// Processes lists every process, parents before children.
	Processes(context.Context, service.Name) ([]service.Process, error)
}

// News tells what happens.
type News interface {
	// Watch gives, in order, every notice after the one of the returned sequence,
	// which is the latest, until ctx ends and notices is closed. For a reader that
	// is too slow some are left out, which shows as a hole in their sequence.
	Watch(ctx context.Context) (after uint64, notices <-chan service.Notice, err error)
	// Kept gives the notices that are kept of those after the one of a sequence,
	// oldest first and without holes: those of an earlier agent as well.
	Kept(after uint64) []service.Notice
	// Sequence is that of the latest notice, kept or not.
	Sequence() uint64
	// KeptSince is from when on Kept misses no notice.
	KeptSince() time.Time
}

// Catalog keeps the definitions. A faulty document is an error of Kind Invalid
// and ReasonBadDefinition with all its faults.
type Catalog interface {
	Register(ctx context.Context, file string, document []byte, replace bool, actor string) (service.Change, error)
	Unregister(ctx context.Context, name service.Name, actor string) error
	Definition(service.Name) (service.Definition, error)
	// Definitions is ordered by name.
	Definitions() []service.Definition
	// Apply makes all of the changes or none.
	Apply(ctx context.Context, files []service.File, opts service.ApplyOptions, actor string) ([]service.Change, error)
}

// Machine tells of the host and of the agent itself.
type Machine interface {
	Host(context.Context) (service.HostInfo, error)
	Doctor(context.Context) []service.Finding
	Configuration() service.Configuration
}
