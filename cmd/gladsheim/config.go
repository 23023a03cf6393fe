package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/platform"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// Where an agent's files are if nobody says otherwise.
const (
	configFile  = "/etc/gladsheim/gladsheim.json"
	servicesDir = "/etc/gladsheim/services.d"
)

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check, show and describe configuration and definitions"}
	c.AddCommand(a.configCheckCommand(), a.configShowCommand(), a.configSchemaCommand())
	return c
}

func (a *app) configCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE|DIR]…",
		Short: "Check definitions and configuration without an agent",
		Long: `Check definitions and configuration without an agent; exit with 6 if something is
wrong with them. A directory is one of definitions, NAME.json. Without arguments
the files of this host are checked: ` + configFile + `
and ` + servicesDir + `.`,
		Args: anyNames,
		RunE: func(_ *cobra.Command, places []string) error {
			if len(places) == 0 {
				for _, place := range []string{configFile, servicesDir} {
					if _, err := os.Lstat(place); err == nil {
						places = append(places, place)
					}
				}
			}
			checked := 0
			var faults config.Faults
			for _, place := range places {
				n, found, err := check(place)
				if err != nil {
					return err
				}
				checked, faults = checked+n, append(faults, found...)
			}
			for _, f := range faults {
				if err := a.showFault(f); err != nil {
					return err
				}
			}
			if len(faults) > 0 {
				return &failure{exitInvalid, fmt.Errorf("cannot accept this: %s", plural(len(faults), "fault"))}
			}
			if a.machine() {
				return nil
			}
			_, err := fmt.Fprintf(a.out, "%s checked, nothing is wrong\n", plural(checked, "file"))
			return err
		},
	}
}

// showFault shows one fault: to people beside the data, to programs as the
// message by which the agent tells it.
func (a *app) showFault(f service.Fault) error {
	if a.machine() {
		return a.printJSON(&gladsheimv1.DefinitionFault{
			File: f.File, Line: uint32(f.Line), Column: uint32(f.Column), Field: f.Field, Message: f.Message,
		})
	}
	_, err := fmt.Fprintln(a.err, plain(f.String()))
	return err
}

// check checks a file or a directory, and counts the files.
func check(place string) (checked int, faults config.Faults, err error) {
	info, err := os.Stat(place)
	if err != nil {
		return 0, nil, fmt.Errorf("cannot check it: %w", err)
	}
	if info.IsDir() {
		good, faults := config.ReadDefinitions(place, service.Defaults(), config.AnyFile)
		bad := map[string]bool{}
		for _, f := range faults {
			bad[f.File] = true
		}
		return len(good) + len(bad), faults, nil
	}
	data, err := config.ReadFile(place, config.AnyFile)
	if err != nil {
		return 0, nil, &failure{exitInvalid, err} // as of one in a directory
	}
	if isConfiguration(place, data) {
		profile, err := platform.Choose("auto", platform.Detect())
		if err != nil {
			return 0, nil, fmt.Errorf("cannot check %s: %w", place, err)
		}
		_, faults = config.ParseAgent(place, data, config.DefaultAgent(profile))
	} else {
		_, faults = config.ParseDefinition(place, data, service.Defaults())
	}
	return 1, faults, nil
}

// isConfiguration tells the agent's configuration from a definition: it has the
// one key that no definition has. What is no JSON goes by its name.
func isConfiguration(path string, data []byte) bool {
	var keys map[string]json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&keys); err != nil {
		return filepath.Base(path) == filepath.Base(configFile)
	}
	_, found := keys["gladsheim"]
	return found
}

func (a *app) configShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show the configuration in force, with everything filled in",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			ctx, cancel := a.question(cmd.Context())
			defer cancel()
			c, err := a.client.GetConfig(ctx, &gladsheimv1.GetConfigRequest{})
			if err != nil {
				return err
			}
			return a.present(c, func() error {
				for _, o := range c.GetOlderDefaults() { // beside the document, which shall stay one
					fmt.Fprintf(a.err, "gladsheim: %s runs with %s %s, the default when it was started; now that is %s, from its next restart on\n",
						plain(o.GetServiceName()), plain(o.GetLimit()), limit(o.GetLimit(), &o.Has), limit(o.GetLimit(), &o.Now))
				}
				return a.showDocument(c.GetJson())
			})
		},
	}
}

func (a *app) configSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:       "schema [service|agent]",
		Short:     "Print the JSON Schema of definitions, or of the agent's configuration",
		ValidArgs: []string{"service", "agent"},
		Args:      anyNames,
		RunE: func(_ *cobra.Command, args []string) error {
			document := config.DefinitionSchema
			switch {
			case len(args) == 0 || len(args) == 1 && args[0] == "service":
			case len(args) == 1 && args[0] == "agent":
				document = config.AgentSchema
			default:
				return usage(errors.New("cannot print that schema; there are service and agent"))
			}
			return a.showDocument(string(document()))
		},
	}
}
