// Package timetable tells when the schedule of a service is due: at times of the wall
// (cron), or so long after the run before (every). It has no clock of its own.
package timetable

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // for hosts without

	"github.com/robfig/cron/v3"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Grace is how late a run may be begun that is not missed yet: the grain of cron.
const Grace = time.Minute

// setBack is how far the clock of the wall has to be set back for times that have been to
// count again.
const setBack = time.Hour

// Table is when a schedule is due.
type Table struct {
	every time.Duration
	cron  cron.Schedule
	zone  *time.Location
}

// parser reads five fields, names of months and days, and words such as @daily.
var parser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// Parse reads a schedule that service.Spec.Validate finds no fault in. What is wrong is
// told with its place in a definition.
func Parse(s service.Schedule) (Table, *service.Fault) {
	if s.Every > 0 {
		return Table{every: s.Every}, nil
	}
	zone := time.Local
	if s.Timezone != "" {
		var err error
		if zone, err = time.LoadLocation(s.Timezone); err != nil || s.Timezone == "Local" {
			return Table{}, fault("timezone", `%q is not the name of a time zone; write one as in "Europe/Stockholm" or "UTC"`, s.Timezone)
		}
	}
	switch {
	case strings.Contains(s.Cron, "TZ="):
		return Table{}, fault("cron", "the time zone has a key of its own: write schedule.timezone")
	case strings.HasPrefix(s.Cron, "@every"):
		return Table{}, fault("cron", "write schedule.every instead of @every")
	}
	times, err := parser.Parse(sundays(s.Cron))
	if err != nil {
		return Table{}, fault("cron", `%q can not be read: %v; write minute, hour, day of month, month and day of week, as in "30 3 * * mon-fri"`, s.Cron, err)
	}
	if times.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return Table{}, fault("cron", "%q never comes", s.Cron)
	}
	return Table{cron: times, zone: zone}, nil
}

// sundays writes 7, which is Sunday in crontab(5) as well, as the parser knows it.
func sundays(spec string) string {
	fields := strings.Fields(spec)
	if len(fields) != 5 {
		return spec
	}
	days := strings.Split(fields[4], ",")
	for i, day := range days {
		if from, span := strings.CutSuffix(day, "-7"); span && from != "7" {
			days[i] = from + "-6,0"
		} else if day == "7" {
			days[i] = "0"
		}
	}
	fields[4] = strings.Join(days, ",")
	return strings.Join(fields, " ")
}

func fault(key, format string, args ...any) *service.Fault {
	return &service.Fault{Field: "schedule." + key, Message: fmt.Sprintf(format, args...)}
}

// Now is one moment, as the clocks of a host tell it.
type Now struct {
	Wall      time.Time
	SinceBoot time.Duration // suspended time included
	Boot      string        // which
}

// MarkOf is now.
func MarkOf(now Now) service.Mark {
	return service.Mark{Wall: now.Wall.Round(0), SinceBoot: now.SinceBoot, Boot: now.Boot}
}

// Of is m as it is to be understood now: a mark of an earlier boot is brought into this one,
// and one that the clock has been set back from is given up.
func (t Table) Of(m service.Mark, now Now) service.Mark {
	switch {
	case t.every > 0 && m.Boot != now.Boot:
		since := max(0, now.Wall.Sub(m.Wall))
		return service.Mark{Wall: m.Wall, SinceBoot: now.SinceBoot - since, Boot: now.Boot}
	case t.every == 0 && m.Wall.Sub(now.Wall) > setBack:
		return MarkOf(now)
	}
	return m
}

// Next is when the schedule is due first after the mark, which Of has given: in the past,
// or now, if it is to be dealt with.
func (t Table) Next(m service.Mark, now Now) time.Time {
	if t.every > 0 {
		return now.Wall.Round(0).Add(m.SinceBoot + t.every - now.SinceBoot)
	}
	return t.cron.Next(m.Wall.In(t.zone)).Round(0)
}

// Pass is the mark when what was missed is passed over: the next time is as if all that had
// been dealt with when it was due. What was due within Grace of now was not missed.
func (t Table) Pass(m service.Mark, now Now) service.Mark {
	next := MarkOf(now)
	switch over := (now.SinceBoot - m.SinceBoot); {
	case t.every == 0:
		next.Wall = next.Wall.Add(-Grace)
	default:
		if over %= t.every; over < Grace {
			over += t.every
		}
		next.Wall, next.SinceBoot = next.Wall.Add(-over), next.SinceBoot-over
	}
	return next
}

// Again tells whether more than the time at, after which the mark was set, is passed over
// by it.
func (t Table) Again(at time.Time, m service.Mark) bool {
	if t.every > 0 {
		return !at.Add(t.every).After(m.Wall)
	}
	return !t.cron.Next(at.In(t.zone)).After(m.Wall)
}
