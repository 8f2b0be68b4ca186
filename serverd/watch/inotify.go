package watch

import "errors"

func openInotify(o Options) (source, error) { return nil, errors.ErrUnsupported }
