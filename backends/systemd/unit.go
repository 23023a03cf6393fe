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
)

// activeState asks for the state of a unit, such as "active" or "failed"; ""
// if systemd does not know the unit.
func (b *bus) activeState(ctx context.Context, name string) (state string, err error) {
	err = b.do(ctx, func(ctx context.Context, l *link) error {
		// To ask for a property of a unit that is not there would make
		// systemd load an empty one.
		var path dbus.ObjectPath
		err := l.manager().CallWithContext(ctx, "org.freedesktop.systemd1.Manager.GetUnit", 0, name).Store(&path)
		if errorIs(err, noSuchUnit) {
			state = ""
			return nil
		}
		if err != nil {
			return err
		}
		p, err := l.systemd.GetUnitPropertyContext(ctx, name, "ActiveState")
		if err != nil {
			return err
		}
		return p.Value.Store(&state)
	})
	if err != nil {
		return "", fmt.Errorf("ask for the state of %s: %w", name, err)
	}
	return state, nil
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
		_, err := l.systemd.StopUnitContext(ctx, name, "replace", nil)
		return err
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
func await(ctx context.Context, news <-chan string, d time.Duration) error {
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
		return l.systemd.ResetFailedUnitContext(ctx, name)
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
		return l.systemd.SetUnitPropertiesContext(ctx, name, true, properties...)
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
		found, err := l.systemd.ListUnitsByPatternsContext(ctx, nil, patterns)
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
