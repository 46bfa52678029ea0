# Completion of samkvctl for bash. Commands and options come from samkvctl's own help, ids from the daemon.

_samkvctl_options() { samkvctl help ${1:+"$1"} 2>/dev/null | sed -n 's/^  \(--[a-z-]*\).*/\1/p'; }
_samkvctl_commands() { samkvctl help 2>/dev/null | sed -n '/^commands:/,/^$/s/^  \([a-z-]*\)  .*/\1/p'; }
_samkvctl_collections() { samkvctl --timeout 1 ls --collections 2>/dev/null | cut -f 1; }
_samkvctl_ids() { samkvctl --timeout 1 ls ${1:+--collection "$1"} 2>/dev/null | cut -f 1; }

_samkvctl() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command='' collection='' i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --collection) collection=${COMP_WORDS[i + 1]} ;;
            --socket | --timeout) ((i++)) ;;
            -*) ;;
            *) [ -n "$command" ] || command=${COMP_WORDS[i]} ;;
        esac
    done
    local IFS=$'\n'
    COMPREPLY=()
    case $before in
        --collection) mapfile -t COMPREPLY < <(compgen -W "$(_samkvctl_collections)" -- "$word") ;;
        --docs) # a list: what stands before the last comma stays
            local done=''
            [[ $word != *,* ]] || done=${word%,*},
            mapfile -t COMPREPLY < <(compgen -P "$done" -W "$(_samkvctl_ids "$collection")" -- "${word##*,}")
            ;;
        --socket | --out | --html | --questions) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
        --update) mapfile -t COMPREPLY < <(compgen -W $'overwrite\ncosine\ndelta' -- "$word") ;;
        --score) mapfile -t COMPREPLY < <(compgen -W $'mean\ntokens\nexact\nlast\nattend' -- "$word") ;;
        --neighbours) mapfile -t COMPREPLY < <(compgen -W $'none\nleft\nboth' -- "$word") ;;
        --selection) mapfile -t COMPREPLY < <(compgen -W $'dynamic\nfixed' -- "$word") ;;
        --positions) mapfile -t COMPREPLY < <(compgen -W $'original\ncompact' -- "$word") ;;
        --placement) mapfile -t COMPREPLY < <(compgen -W $'host\ndevice' -- "$word") ;;
        --method) mapfile -t COMPREPLY < <(compgen -W $'samkv\nfull\nreuse' -- "$word") ;;
        *)
            if [[ $word == -* ]]; then
                mapfile -t COMPREPLY < <(compgen -W "$(_samkvctl_options "$command")" -- "$word")
            elif [ -z "$command" ] || [ "$command" = help ]; then
                mapfile -t COMPREPLY < <(compgen -W "$(_samkvctl_commands)"$'\n'help -- "$word")
            else
                case $command in
                    show | rm | pin | unpin) mapfile -t COMPREPLY < <(compgen -W "$(_samkvctl_ids "$collection")" -- "$word") ;;
                    export | set) mapfile -t COMPREPLY < <(compgen -W "$(_samkvctl_collections)" -- "$word") ;;
                    ingest | import | eval) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
                esac
            fi
            ;;
    esac
}
complete -o filenames -F _samkvctl samkvctl
