package selfsigned

import (
	"io"
	"log/slog"
)

// textLog logs as text to w.
func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
