extension CachedAttention {
  /// Hands a call to the pool's backend, with queries turned where nobody else does it.
  func attend(_ call: KVCacheCall) throws(AttentionError) {
    guard let rotary else { return try pool.store.attend(call) }
    for part in call.parts where !part.queries.isEmpty {
      try rotary.check(
        dimension: pool.headDimension,
        positions: part.firstPosition,
        count: part.queries.count
      )
    }
    guard !pool.store.appliesRotary else { return try pool.store.attend(call) }
    let positions = call.parts.flatMap { part in
      (0..<part.queries.count).map { part.firstPosition + $0 }
    }
    let turned = try rotary.apply(to: call.query.view, positions: positions)
    var call = call
    call.query = .init(turned.view)
    try pool.store.attend(call)
    extendLifetime(turned)
  }
}
