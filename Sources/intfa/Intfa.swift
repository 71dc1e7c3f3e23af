import IntFlashAttention
func rnd(_ n: Int, _ s: inout UInt64) -> [Float] { (0..<n).map { _ in
  var t: Float = 0
  for _ in 0..<4 { s = s &* 6364136223846793005 &+ 1442695040888963407; t += Float(s >> 40) / 16777216 - 0.5 }
  return t * 1.7 } }
@main struct Main { static func main() throws {
  var s: UInt64 = 1
  for (hq, hk, nq, nk, d, dv) in [(2,1,300,300,64,64),(1,1,70,211,32,48),(3,1,1,1,20,20),(2,2,129,65,128,128)] {
    let q = try Tensor(rnd(hq*nq*d,&s), shape:[1,hq,nq,d]), k = try Tensor(rnd(hk*nk*d,&s), shape:[1,hk,nk,d]), v = try Tensor(rnd(hk*nk*dv,&s), shape:[1,hk,nk,dv])
    for mask in [AttentionMask.full, .causal] {
      let exact = try attention(query: q.view, key: k.view, value: v.view, options: .init(mask: mask), precision: .float32, on: ReferenceBackend()).copyFloats()
      for p in Precision.allCases {
        let r = try attention(query: q.view, key: k.view, value: v.view, options: .init(mask: mask), precision: p, on: ReferenceBackend()).copyFloats()
        let c = p == .int4QueryKey ? r : try attention(query: q.view, key: k.view, value: v.view, options: .init(mask: mask), precision: p).copyFloats()
        func rel(_ a: [Float], _ b: [Float]) -> Float { zip(a,b).reduce(0) { $0 + abs($1.0-$1.1) } / b.reduce(0) { $0 + abs($1) } }
        print(nq, nk, d, mask, p, "ref", rel(r, exact), "cpu", rel(c, exact), "cpu-ref", rel(c, r))
      }
    }
  }
} }
