package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// steps are those that are counted of each service, in the order in which they are taken.
var steps = []string{"warn", "throttle", "stop", "livelock"}

func (a *app) metricsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print figures of all services for Prometheus",
		Long: `Print figures of all services for Prometheus, in its text format, as the textfile
collector of the node exporter reads them.

Counters begin at 0 when the agent begins.`,
		Example: `  cd /var/lib/prometheus/node-exporter && gladsheim metrics > gladsheim.prom.new && mv gladsheim.prom.new gladsheim.prom`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			ctx, cancel := a.question(cmd.Context())
			defer cancel()
			services, err := a.client.ListServices(ctx, &gladsheimv1.ListServicesRequest{})
			if err != nil {
				return err
			}
			return a.present(services, func() error { return a.showMetrics(services) })
		},
	}
}

// showMetrics needs no escapes: neither names nor states and steps have a quote in them
// (https://prometheus.io/docs/instrumenting/exposition_formats/).
func (a *app) showMetrics(services *gladsheimv1.ServiceList) error {
	out := &strings.Builder{}
	fmt.Fprintln(out, "# HELP gladsheim_service_state 1 for the state that the service is in, 0 for the others.")
	fmt.Fprintln(out, "# TYPE gladsheim_service_state gauge")
	for _, s := range services.GetServices() {
		for _, state := range stateWords() {
			is := 0
			if stateWord(s.GetState()) == state {
				is = 1
			}
			fmt.Fprintf(out, "gladsheim_service_state{service=\"%s\",state=\"%s\"} %d\n", plain(s.GetServiceName()), state, is)
		}
	}
	fmt.Fprintln(out, "# HELP gladsheim_service_enforcements_total What was done about a service that uses too much, by the step that was taken.")
	fmt.Fprintln(out, "# TYPE gladsheim_service_enforcements_total counter")
	for _, s := range services.GetServices() {
		taken := map[string]uint64{}
		for _, e := range s.GetEnforcements() {
			taken[e.GetStep()] = e.GetCount()
		}
		for _, step := range steps {
			fmt.Fprintf(out, "gladsheim_service_enforcements_total{service=\"%s\",step=\"%s\"} %d\n", plain(s.GetServiceName()), step, taken[step])
		}
	}
	_, err := fmt.Fprint(a.out, out)
	return err
}
