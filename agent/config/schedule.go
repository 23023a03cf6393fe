package config

import (
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/timetable"
)

var schedule = object[service.Schedule]{
	absent: service.Schedule.IsZero,
	keys: []key[service.Schedule]{
		at("cron", "Minute, hour, day of month, month and day of week by the clock of the wall (crontab(5)), or a word such as @daily.",
			text{max: 256, line: true}, func(s *service.Schedule) *string { return &s.Cron }),
		at("every", "Instead of cron: how long from the beginning of one run to that of the next, whatever the clock says.",
			optionalDuration{duration{service.MinEvery, service.MaxEvery}}, func(s *service.Schedule) *time.Duration { return &s.Every }),
		at("timezone", "Of cron, by its IANA name; the host's when left out.",
			text{max: 256, line: true}, func(s *service.Schedule) *string { return &s.Timezone }),
		at("missed", "What is made up for of runs that were due while agent or host were down: skip, nothing; run, one.",
			word[service.Missed]{values: []service.Missed{service.MissedSkip, service.MissedRun}}, func(s *service.Schedule) *service.Missed { return &s.Missed }),
		at("overlap", "What becomes of a run that is due while the one before goes on: skip, nothing; queue, it waits for the end of that, one at most; replace, that is stopped first.",
			word[service.Overlap]{values: []service.Overlap{service.OverlapSkip, service.OverlapQueue, service.OverlapReplace}}, func(s *service.Schedule) *service.Overlap { return &s.Overlap }),
	},
	check: func(d *document, path string, n *node, _ *service.Schedule) {
		_, cron := n.has("cron")
		if _, every := n.has("every"); !cron && !every {
			d.fault(n.offset, path, "says no time: write cron or every")
		}
	},
	rules: func(s *jsonschema.Schema) {
		s.OneOf = []*jsonschema.Schema{{Required: []string{"cron"}}, {Required: []string{"every"}}}
	},
}

// readTable finds what is wrong with the times of a schedule.
func readTable(d *document, path string, s *service.Spec) {
	if d.faulty(join(path, "schedule")) || s.Schedule.Cron == "" || s.Schedule.Every > 0 {
		return
	}
	if _, fault := timetable.Parse(s.Schedule); fault != nil && !d.faulty(fault.Field) {
		d.fault(d.place(fault.Field), fault.Field, "%s", fault.Message)
	}
}
