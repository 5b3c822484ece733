import sys, itertools
from retlab.config import load_config
from retlab.models.counting import count_parameters, match_intermediate_size, with_intermediate_size
h_,f_,n_,v=eval(sys.argv[1]),eval(sys.argv[2]),eval(sys.argv[3]),int(sys.argv[4])
layers=sys.argv[5]
for h,f,n in itertools.product(h_,f_,n_):
    try:
        r=load_config("configs/quickstart.yaml",[f"model.hidden_size={h}",f"model.intermediate_size={f}",f"model.num_attention_heads={n}",f"model.num_hidden_layers={layers}"])
        t=load_config("configs/quickstart.yaml",["model.architecture=transformer",f"model.hidden_size={h}",f"model.num_attention_heads={n}",f"model.num_hidden_layers={layers}"])
        rf,tf=r.model.to_fields(v),t.model.to_fields(v)
        p=count_parameters(rf).total
        w=match_intermediate_size(tf,p)
        q=count_parameters(with_intermediate_size(tf,w)).total
        print(h,f,n,p,w,q,f"{q/p-1:+.4f}")
    except Exception as e: print(h,f,n,e)
