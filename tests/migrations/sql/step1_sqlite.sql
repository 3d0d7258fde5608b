CREATE TABLE execution_requests (
    scope VARCHAR(255) DEFAULT '' NOT NULL, 
    request_id VARCHAR(255) NOT NULL, 
    action VARCHAR(255) NOT NULL, 
    fingerprint VARCHAR(128) NOT NULL, 
    status VARCHAR(16) DEFAULT 'claimed' NOT NULL, 
    token CHAR(32) NOT NULL, 
    attempt INTEGER DEFAULT 1 NOT NULL, 
    result TEXT, 
    error TEXT, 
    payload TEXT, 
    details TEXT, 
    lease_expires_at DATETIME, 
    effect_started_at DATETIME, 
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL, 
    completed_at DATETIME, 
    CONSTRAINT pk_execution_requests PRIMARY KEY (scope, request_id), 
    CONSTRAINT ck_execution_requests_request_id CHECK (length(request_id) > 0), 
    CONSTRAINT ck_execution_requests_status CHECK (status IN ('claimed', 'completed', 'refused', 'leased', 'failed', 'in_doubt', 'expired')), 
    CONSTRAINT ck_execution_requests_result CHECK (status NOT IN ('completed', 'refused') OR result IS NOT NULL), 
    CONSTRAINT ck_execution_requests_lease CHECK (status NOT IN ('leased', 'in_doubt') OR lease_expires_at IS NOT NULL)
);

CREATE INDEX ix_execution_requests_open ON execution_requests (lease_expires_at) WHERE lease_expires_at IS NOT NULL OR payload IS NOT NULL;
