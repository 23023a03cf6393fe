package systemd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/godbus/dbus/v5"

	sd "github.com/coreos/go-systemd/v22/dbus"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/units"
)

const (
	scopeSuffix = ".scope"
	sliceSuffix = ".slice"
	ours        = "gladsheim-" // begins the names of our scopes and cells
)

// cellOf names the slice around a scope. Dashes in the name of a slice mean
// nesting (systemd.slice(5)), so those of the scope's name are escaped and the
// cell lies directly in gladsheim.slice.
func cellOf(scope string) string {
	label := strings.TrimSuffix(strings.TrimPrefix(scope, ours), scopeSuffix)
	return ours + unit.UnitNameEscape(label) + sliceSuffix
}

// parseUnit reads the name of a scope or a cell of ours.
func parseUnit(name string) (service.Name, uint64, bool) {
	if label, ok := strings.CutSuffix(name, sliceSuffix); ok {
		label = unit.UnitNameUnescape(strings.TrimPrefix(label, ours))
		scope := ours + label + scopeSuffix
		if cellOf(scope) != name {
			return service.Name{}, 0, false
		}
		name = scope
	}
	return units.ParseScope(name)
}

const (
	noSuchUnit = "org.freedesktop.systemd1.NoSuchUnit"
	unitExists = "org.freedesktop.systemd1.UnitExists"

	// The start contradicts a stop that is under way.
	destructive = "org.freedesktop.systemd1.TransactionIsDestructive"

	unknownObject = "org.freedesktop.DBus.Error.UnknownObject"
)

// activeState asks for the state of a unit, such as "active" or "failed"; ""
// if systemd does not know the unit.
func (b *bus) activeState(ctx context.Context, name string) (state string, err error) {
	err = b.do(ctx, func(ctx context.Context, l *link) error {
		// To ask for a property of a unit that is not there would make
		// systemd load an empty one.
		state = ""
		path, err := l.unit(ctx, name)
		if err != nil || path == "" {
			return err
		}
		state, err = l.activeState(ctx, path)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("ask for the state of %s: %w", name, err)
	}
	return state, nil
}

// unit finds the object of a unit; "" if systemd does not know it.
func (l *link) unit(ctx context.Context, name string) (dbus.ObjectPath, error) {
	var path dbus.ObjectPath
	err := l.call(ctx, manager, "systemd1.Manager.GetUnit", []any{name}, &path)
	if errorIs(err, noSuchUnit) {
		return "", nil
	}
	return path, err
}

// unitPath is the object of a unit that is loaded.
func unitPath(name string) dbus.ObjectPath {
	return manager + "/unit/" + dbus.ObjectPath(sd.PathBusEscape(name))
}

func (l *link) activeState(ctx context.Context, unit dbus.ObjectPath) (state string, err error) {
	err = l.property(ctx, unit, "Unit", "ActiveState", &state)
	return state, err
}

// property reads a property of an object of systemd.
func (l *link) property(ctx context.Context, object dbus.ObjectPath, iface, name string, into any) error {
	var value dbus.Variant
	err := l.call(ctx, object, "DBus.Properties.Get", []any{"org.freedesktop.systemd1." + iface, name}, &value)
	if err != nil {
		return err
	}
	return value.Store(into)
}

// job names a job of a unit; its ID is 0 when there is none.
type job struct {
	ID   uint32
	Path dbus.ObjectPath
}

// startOf finds the job that is to start a unit; "" if there is none.
func (l *link) startOf(ctx context.Context, name string) (dbus.ObjectPath, error) {
	path, err := l.unit(ctx, name)
	if err != nil || path == "" {
		return "", err
	}
	var j job
	if err := l.property(ctx, path, "Unit", "Job", &j); err != nil || j.ID == 0 {
		return "", err
	}
	var kind string
	err = l.property(ctx, j.Path, "Job", "JobType", &kind)
	if errorIs(err, unknownObject) || err == nil && kind != "start" { // it has ended, or is another
		return "", nil
	}
	return j.Path, err
}

// starting tells whether a unit is about to be started by somebody.
func (b *bus) starting(ctx context.Context, name string) (starts bool, err error) {
	err = b.do(ctx, func(ctx context.Context, l *link) error {
		job, err := l.startOf(ctx, name)
		starts = job != ""
		return err
	})
	if err != nil {
		return false, fmt.Errorf("ask for the job of %s: %w", name, err)
	}
	return starts, nil
}

// unstart takes back the start of a unit that has not begun. A job that is to
// stop the unit would take its place in the queue, and wait for what it waits for.
func (b *bus) unstart(ctx context.Context, name string) error {
	err := b.do(ctx, func(ctx context.Context, l *link) error {
		job, err := l.startOf(ctx, name)
		if err != nil || job == "" {
			return err
		}
		err = l.call(ctx, job, "systemd1.Job.Cancel", nil)
		if errorIs(err, unknownObject) { // it has ended
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cancel the start of %s: %w", name, err)
	}
	return nil
}

// recheck is how long news is waited for before the state itself is looked at;
// doubled each time.
const recheck = time.Second

// remove stops a unit with all that depends on it, and returns when systemd
// knows it no more.
func (b *bus) remove(ctx context.Context, name string) error {
	ended, forget := b.ends.expect(name)
	defer forget()
	err := b.do(ctx, func(ctx context.Context, l *link) error {
		return l.call(ctx, manager, "systemd1.Manager.StopUnit", []any{name, "replace"})
	})
	if errorIs(err, noSuchUnit) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	for patience := recheck; ; patience *= 2 {
		if err := await(ctx, ended, patience); err != nil {
			return fmt.Errorf("stop %s: %w", name, err)
		}
		state, err := b.activeState(ctx, name)
		switch {
		case err != nil || state == "":
			return err
		case state == "failed":
			if err := b.reset(ctx, name); err != nil {
				return err
			}
		}
	}
}

// await waits for news, for d at most.
func await(ctx context.Context, news <-chan jobEnd, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-news:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// reset makes systemd forget that a unit has failed, and then the unit.
func (b *bus) reset(ctx context.Context, name string) error {
	err := b.do(ctx, func(ctx context.Context, l *link) error {
		return l.call(ctx, manager, "systemd1.Manager.ResetFailedUnit", []any{name})
	})
	if err != nil && !errorIs(err, noSuchUnit) {
		return fmt.Errorf("reset %s: %w", name, err)
	}
	return nil
}

// set changes properties of a living unit until the next boot.
func (b *bus) set(ctx context.Context, name string, properties []sd.Property) error {
	if len(properties) == 0 {
		return nil
	}
	err := b.do(ctx, func(ctx context.Context, l *link) error {
		return l.call(ctx, manager, "systemd1.Manager.SetUnitProperties", []any{name, true, properties})
	})
	if err != nil {
		return fmt.Errorf("set properties of %s: %w", name, err)
	}
	return nil
}

// removeAll removes units, one after the other.
func (b *bus) removeAll(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := b.remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// list names the loaded units that match one of the patterns.
func (b *bus) list(ctx context.Context, patterns ...string) (names []string, err error) {
	err = b.do(ctx, func(ctx context.Context, l *link) error {
		var found []sd.UnitStatus
		err := l.call(ctx, manager, "systemd1.Manager.ListUnitsByPatterns", []any{[]string{}, patterns}, &found)
		names = names[:0]
		for _, u := range found {
			names = append(names, u.Name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	return names, nil
}
